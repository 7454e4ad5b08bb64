"""What runs on the far side of the wall. The modules import each other and the standard library
alone: a server process loads them as the package `jail`, without logpi and without torch."""
