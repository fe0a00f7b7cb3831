"""``fusionroute roma``: tune the routers of a mixture-of-experts model, and see what that did."""
