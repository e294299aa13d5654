"""Where records come from and go to. Connectors know the engine; the engine does not know them."""
