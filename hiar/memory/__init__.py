"""What training and sampling take of memory, told before anything is loaded: `hiar plan`."""
