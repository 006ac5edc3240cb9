# make image-rootfs && docker build -f deploy/images/operator.Dockerfile -t kvcache-operator:0.1.0 dist/rootfs/operator
#
# Nothing but the program, the libraries that it is linked to, certificates and a user: no shell, no package manager.
FROM scratch
COPY . /
USER 65532:65532
ENV PATH=/usr/bin
EXPOSE 8080
ENTRYPOINT ["/usr/bin/kvcache-operator"]
