"""What a bundle is compared with: the libraries themselves."""
