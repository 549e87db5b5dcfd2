FROM ocaml/opam:debian-12-ocaml-4.14 AS build
USER 1000:1000
ENV OPAMYES=1 OPAMCONFIRMLEVEL=unsafe-yes DUNE_CACHE=enabled DUNE_CACHE_TRANSPORT=direct DUNE_CACHE_STORAGE_MODE=copy DUNE_CACHE_DUPLICATION=copy
RUN sudo apt-get update && sudo apt-get install -y m4 pkg-config
RUN mkdir -p /home/opam/.opam/download-cache /home/opam/.cache/dune
RUN cd /home/opam/opam-repository && git fetch origin 0123456789012345678901234567890123456789 && git reset --hard 0123456789012345678901234567890123456789 && opam update
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 case $(opam --version) in 2.0.*) opam depext -ui 'mirage>=4.0.0' 'opam-monorepo';; *) opam install 'mirage>=4.0.0' 'opam-monorepo';; esac
RUN mkdir -p /home/opam/repo/mirage
WORKDIR /home/opam/repo/mirage
COPY --chown=1000:1000 mirage/config.ml /home/opam/repo/mirage/config.ml
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","configure","-f","config.ml","-o","unikernel","-t","hvt","--dhcp=false","--hello=it's"]
RUN opam install opam-depext
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","make","depend"]
COPY --chown=1000:1000 . /home/opam/repo/
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","configure","-f","config.ml","-o","unikernel","-t","hvt","--dhcp=false","--hello=it's"]
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","build"]

FROM scratch
COPY --from=build /home/opam/repo/mirage/dist/unikernel.hvt /unikernel.hvt
