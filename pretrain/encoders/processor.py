"""The image processor of a release: `preprocessor_config.json`, as `transformers.AutoImageProcessor` reads it."""
