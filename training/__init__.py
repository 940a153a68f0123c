"""Fine-tuning: data -> Trainer -> checkpoint. Knows nothing of export; the checkpoint folder is the interface."""
