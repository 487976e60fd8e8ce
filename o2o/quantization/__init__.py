"""Weight quantization. A recipe selects a scheme for each matrix; the weights are quantized while they are
written.

    recipe = recipes.find("dynamic_int8")
    results = quantize(model, recipe)            # graphs are changed and scales computed
    formats.save(model, "model.circle")          # weights are quantized a few rows at a time
    report.report(recipe, results)               # errors and sizes
"""
