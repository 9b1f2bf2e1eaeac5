"""The few building blocks decoders are made of."""
