# The gateway in a container; see README.md beside this file for what it needs.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN make build && cp target/*-unknown-linux-gnu/release/firkin /firkin

FROM debian:bookworm-slim
COPY --from=build /firkin /usr/local/bin/firkin
VOLUME /var/lib/firkin
EXPOSE 3000
ENTRYPOINT ["firkin", "serve", "--listen", "0.0.0.0:3000"]
