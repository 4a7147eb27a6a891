"""What the service needs on a machine, tried one need at a time. Mends nothing."""
