"""The machine that the stand-ins and the functions run on: containers, images, processes."""
