FROM registry.example/opam:5.2 AS build
USER 1000:1000
ENV OPAMYES=1 OPAMCONFIRMLEVEL=unsafe-yes DUNE_CACHE=enabled DUNE_CACHE_TRANSPORT=direct DUNE_CACHE_STORAGE_MODE=copy DUNE_CACHE_DUPLICATION=copy
RUN sudo apt-get update && sudo apt-get install -y m4 pkg-config
RUN mkdir -p /home/opam/.opam/download-cache /home/opam/.cache/dune
RUN case $(opam --version) in 2.0.*) opam depext -ui 'mirage>=4.0.0' 'opam-monorepo';; *) opam install 'mirage>=4.0.0' 'opam-monorepo';; esac
RUN mkdir -p /home/opam/repo
WORKDIR /home/opam/repo
COPY --chown=1000:1000 config.ml /home/opam/repo/config.ml
RUN ["opam","exec","--","mirage","configure","-f","config.ml","-o","unikernel","-t","spt"]
RUN ["opam","exec","--","make","depend"]
COPY --chown=1000:1000 . /home/opam/repo/
RUN ["opam","exec","--","mirage","configure","-f","config.ml","-o","unikernel","-t","spt"]
RUN ["opam","exec","--","mirage","build"]

FROM scratch
COPY --from=build /home/opam/repo/dist/unikernel.spt /unikernel.spt
