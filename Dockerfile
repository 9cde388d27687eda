# A static binary, the certificates of the public authorities, and nothing else. No shell, no libc, not root.
#   docker build -t portcullis .
#   docker run -p 8443:443 -v ./portcullis.yaml:/etc/portcullis/config.yaml:ro portcullis
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools ca-certificates \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
# `uname -m` is x86_64 or aarch64, as Rust spells them.
RUN target="$(uname -m)-unknown-linux-musl" \
 && rustup target add "$target" \
 && cargo build --release --locked --target "$target" \
 && mkdir -p /image/usr/bin /image/etc/ssl/certs /image/var/lib/portcullis /image/tmp \
 && cp "target/$target/release/portcullis" /image/usr/bin/portcullis \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && chown -R 65532:65532 /image/var/lib/portcullis

FROM scratch
COPY --from=build /image/ /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# Sessions and keys: mount a volume here, or sessions end with the container.
VOLUME /var/lib/portcullis
USER 65532:65532
EXPOSE 443 28080
ENTRYPOINT ["/usr/bin/portcullis"]
CMD ["run", "-c", "/etc/portcullis/config.yaml"]
