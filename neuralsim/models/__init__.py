"""World models, codecs and their networks."""
