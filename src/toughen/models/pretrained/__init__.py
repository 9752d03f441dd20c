"""Weights of others: files, timm, the Hugging Face Hub, and a new head on a trained trunk."""
