"""Values that travel between layers and to disk: frozen, versioned, JSON in and out; no torch, no Gradio."""
