"""The inference engine that Plimsoll's worker pods run."""
