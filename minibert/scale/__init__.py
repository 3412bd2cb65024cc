"""Many rows at once, on the engines that people have; README.md has a recipe for each of them."""
