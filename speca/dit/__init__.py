"""DiT (Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748) as a ComfyUI model."""
