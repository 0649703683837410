"""Vision backbones: the contract, the registry, and a file per family."""
