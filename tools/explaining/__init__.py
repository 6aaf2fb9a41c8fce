"""Why does a plan run as it does? (`hjgc explain`)"""
