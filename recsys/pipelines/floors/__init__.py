"""The floors under every figure: tuned on the validation part, fitted, described."""
