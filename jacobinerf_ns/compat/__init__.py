"""Every place where nerfstudio is patched or stood in for: what it replaces, why, and until when."""
