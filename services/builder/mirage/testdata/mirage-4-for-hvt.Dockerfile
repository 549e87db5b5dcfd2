FROM ocaml/opam:debian-12-ocaml-4.14 AS build
USER 1000:1000
ENV OPAMYES=1 OPAMCONFIRMLEVEL=unsafe-yes DUNE_CACHE=enabled DUNE_CACHE_TRANSPORT=direct DUNE_CACHE_STORAGE_MODE=copy DUNE_CACHE_DUPLICATION=copy
RUN sudo apt-get update && sudo apt-get install -y m4 pkg-config
RUN mkdir -p /home/opam/.opam/download-cache /home/opam/.cache/dune
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 case $(opam --version) in 2.0.*) opam depext -ui 'mirage>=4.0.0' 'opam-monorepo';; *) opam install 'mirage>=4.0.0' 'opam-monorepo';; esac
RUN mkdir -p /home/opam/repo
WORKDIR /home/opam/repo
COPY --chown=1000:1000 config.ml /home/opam/repo/config.ml
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","configure","-f","config.ml","-o","unikernel","-t","hvt"]
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","make","depend"]
COPY --chown=1000:1000 . /home/opam/repo/
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","configure","-f","config.ml","-o","unikernel","-t","hvt"]
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","build"]

FROM scratch
COPY --from=build /home/opam/repo/dist/unikernel.hvt /unikernel.hvt
