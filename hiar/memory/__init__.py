"""Memory that training and sampling take, forecast before anything is loaded: `hiar plan`."""
