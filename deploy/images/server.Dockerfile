# make image-rootfs && docker build -f deploy/images/server.Dockerfile -t kvcache-server:0.1.0 dist/rootfs/server
#
# Nothing but the program, the libraries that it uses, certificates and a user: no shell, no package manager.
FROM scratch
COPY . /
USER 65532:65532
ENV PATH=/usr/bin
EXPOSE 12345 8088
ENTRYPOINT ["/usr/bin/kvcache"]
CMD ["serve", "--help"]
