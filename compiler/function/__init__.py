"""How does an ONNX model of any kind become a plan that is a function: named tensors in, named tensors out?"""
