"""The paper's equations: tensors in, tensors out, in their dense and readable form.

`head` is section 3's W with what real models put around it, `perplexity` and `confidence` are section 3.1 and Step 1,
`mixup` is Steps 2 and 3 of section 3.3, `objective` the loss of a step, `gradient` Appendix A.
"""
