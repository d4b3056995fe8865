"""Programs beside the chain: doctor, bench, demo, gpu-check."""
