FROM registry.example/own@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa AS build
USER 1000:1000
ENV OPAMYES=1 OPAMCONFIRMLEVEL=unsafe-yes DUNE_CACHE=enabled DUNE_CACHE_TRANSPORT=direct DUNE_CACHE_STORAGE_MODE=copy DUNE_CACHE_DUPLICATION=copy
RUN sudo apt-get update && sudo apt-get install -y m4 pkg-config
RUN mkdir -p /home/opam/.opam/download-cache /home/opam/.cache/dune
RUN cd /home/opam/opam-repository && git fetch origin 0123456789012345678901234567890123456789 && git reset --hard 0123456789012345678901234567890123456789 && opam update
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 case $(opam --version) in 2.0.*) opam depext -ui 'ocaml-freestanding' 'mirage<4.0.0';; *) opam install 'ocaml-freestanding' 'mirage<4.0.0';; esac
RUN mkdir -p /home/opam/repo/src/deep
WORKDIR /home/opam/repo/src/deep
COPY --chown=1000:1000 src/deep/config.ml /home/opam/repo/src/deep/config.ml
RUN opam pin add -n tls 0.15
ENV LANG=C
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","configure","-f","config.ml","-t","spt","--kv_ro=crunch","--name=a b","; rm -rf / $(id) \"'\\","\u003c\u003cEOF"]
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","make","depend"]
COPY --chown=1000:1000 . /home/opam/repo/
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","mirage","configure","-f","config.ml","-t","spt","--kv_ro=crunch","--name=a b","; rm -rf / $(id) \"'\\","\u003c\u003cEOF"]
RUN --mount=type=cache,id=fulmar-opam,target=/home/opam/.opam/download-cache,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=/home/opam/.cache/dune,uid=1000,gid=1000 ["opam","exec","--","make"]
RUN set -- *.spt && test $# -eq 1 && mkdir -p dist && cp -- "$1" dist/unikernel.spt

FROM scratch
COPY --from=build /home/opam/repo/src/deep/dist/unikernel.spt /unikernel.spt
