"""What do the commands that call plans that are functions share?

Inputs that are made up (`made_up.py`), the same model in ONNX Runtime (`ort.py`), what one gave beside what the other
gave (`comparing.py`), and the judgement of `hjgc verify` (`verifying.py`, `text.py`).
"""
