FROM ocaml/opam:ubuntu-ocaml-4.11 AS build
USER 1000:1000
ENV OPAMYES=1 OPAMCONFIRMLEVEL=unsafe-yes DUNE_CACHE=enabled DUNE_CACHE_TRANSPORT=direct DUNE_CACHE_STORAGE_MODE=copy DUNE_CACHE_DUPLICATION=copy
RUN sudo apt-get update && sudo apt-get install -y m4 pkg-config
RUN mkdir -p /home/opam/.opam/download-cache /home/opam/.cache/dune
RUN case $(opam --version) in 2.0.*) opam depext -ui 'ocaml-freestanding' 'mirage<4.0.0';; *) opam install 'ocaml-freestanding' 'mirage<4.0.0';; esac
RUN mkdir -p /home/opam/repo
WORKDIR /home/opam/repo
COPY --chown=1000:1000 config.ml /home/opam/repo/config.ml
RUN ["opam","exec","--","mirage","configure","-f","config.ml","-t","hvt"]
RUN ["opam","exec","--","make","depend"]
COPY --chown=1000:1000 . /home/opam/repo/
RUN ["opam","exec","--","mirage","configure","-f","config.ml","-t","hvt"]
RUN ["opam","exec","--","make"]
RUN set -- *.hvt && test $# -eq 1 && mkdir -p dist && cp -- "$1" dist/unikernel.hvt

FROM scratch
COPY --from=build /home/opam/repo/dist/unikernel.hvt /unikernel.hvt
