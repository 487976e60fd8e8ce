"""Smaller weights: what becomes of which (`recipes`), how (`schemes`), while it is written (`tensors`).

recipe = recipes.find("dynamic_int8")
done = rewriting.quantize(model, recipe)     # graphs changed, scales known; numbers still where they were
formats.save(model, "model.circle")          # quantised a few rows at a time
report.report(recipe, done)                  # errors, sizes
"""
