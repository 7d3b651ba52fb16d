# GraphiQL, which the binary embeds.
FROM node:22-bookworm-slim AS playground
WORKDIR /playground
COPY playground/package.json playground/package-lock.json playground/.npmrc ./
RUN npm ci
COPY playground ./
RUN npm run build

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY migrations migrations
COPY tests tests
COPY src src
COPY --from=playground /playground/dist playground/dist
# Cache mounts keep dependencies between builds.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked && cp target/release/fasttrack /fasttrack
RUN install -d -o 10001 -g 10001 /data

# Contains only glibc and root certificates (for SMTP and PostgreSQL over TLS); no shell.
FROM gcr.io/distroless/cc-debian12
COPY --from=build /fasttrack /usr/local/bin/fasttrack
COPY --from=build --chown=10001:10001 /data /data
ENV LISTEN_ADDR=0.0.0.0:8000 \
    DATABASE_URL=sqlite:///data/fasttrack.db
USER 10001:10001
# Data and keys are written only here, so the root file system can be read-only.
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["fasttrack", "health"]
ENTRYPOINT ["fasttrack"]
