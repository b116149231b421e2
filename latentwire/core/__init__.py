"""What all other folders use: errors, files, hashes, seeds, run manifests, intervals. No torch."""
