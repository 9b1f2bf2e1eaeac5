"""Between a face and the engine: validate, tokenise, submit, detokenise, stop."""
