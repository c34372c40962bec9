"""lgreco inside frameworks that wrap the model themselves: one module each, loaded only where it is imported."""
