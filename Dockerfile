# The binary, and the examples that docker-compose.yml serves. Plugins need no toolchain: they are committed as built.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN apt-get update && apt-get install -y --no-install-recommends python3 wrk nghttp2-client util-linux \
    && rm -rf /var/lib/apt/lists/*
RUN bash bench/pgo.sh

FROM debian:bookworm-slim
COPY --from=build /src/target/pgo/plenipo /usr/local/bin/plenipo
COPY xds-examples /etc/plenipo/xds-examples
# Launchers look for `envoy`.
RUN ln -s /usr/local/bin/plenipo /usr/local/bin/envoy \
    && useradd --system --home-dir /var/lib/plenipo --create-home plenipo
USER plenipo
ENV PLENIPO_CACHE_DIR=/var/lib/plenipo/cache
EXPOSE 10000 9901
ENTRYPOINT ["plenipo"]
CMD ["-c", "/etc/plenipo/xds-examples/quickstart/bootstrap.yaml"]
