"""How good the encoder is, while it trains."""
