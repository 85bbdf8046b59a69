"""The merged image: layers joined into one sorted map, chunks decoded and verified, one device."""
