"""What is deployed: the chart, the manifests together, and the images' root file systems."""
