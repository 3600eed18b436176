"""Layer-condensed KV cache: few layers own K and V (arXiv 2405.10637, 2410.14442).

``layer_types.py`` says which layer reads whose K and V, ``config.py`` is the published
configuration, ``model.py`` the model for vLLM.
"""
