"""The main job on real input: a small byte-level GPT, trained dense and compressed side by side."""
