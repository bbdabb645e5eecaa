"""Tools that measure: the load client and the offline benchmark."""
