# A static binary, the certificates of the public authorities, and nothing else. No shell, no libc, not root.
#   docker build -t portcullis .                                                with DOCKER_BUILDKIT=1 before Docker 23
#   docker buildx build --platform linux/amd64,linux/arm64 -t portcullis .     both are built on this machine's own
#   docker run -p 8443:443 -v ./portcullis.yaml:/etc/portcullis/config.yaml:ro portcullis
FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
# What `deploy/release` puts the binary under load with.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates nghttp2-client nginx-light openssl python3 wrk \
 && rm -rf /var/lib/apt/lists/* \
 && rustup component add llvm-tools
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
COPY deploy/release ./deploy/release
COPY tests/bench ./tests/bench
ARG TARGETARCH
RUN mkdir -p /image/etc/ssl/certs /image/var/lib/portcullis /image/tmp \
 && case "$TARGETARCH" in amd64) architecture=x86_64 ;; arm64) architecture=aarch64 ;; *) architecture=$(uname -m) ;; esac \
 && deploy/release /image/usr/bin/portcullis "$architecture" \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && chown -R 65532:65532 /image/var/lib/portcullis

FROM scratch
COPY --from=build /image/ /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
LABEL org.opencontainers.image.title="Portcullis" \
      org.opencontainers.image.description="An authenticating reverse proxy" \
      org.opencontainers.image.licenses="Apache-2.0"
# Sessions and keys: mount a volume here, or sessions end with the container.
VOLUME /var/lib/portcullis
USER 65532:65532
EXPOSE 443 28080
ENTRYPOINT ["/usr/bin/portcullis"]
CMD ["run", "-c", "/etc/portcullis/config.yaml"]
