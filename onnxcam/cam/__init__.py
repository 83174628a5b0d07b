"""CAM methods: their registry, the view they get of a layer, and the methods themselves."""
