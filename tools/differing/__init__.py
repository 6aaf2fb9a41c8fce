"""What differs between two plans, and what is the cause? (`hjgc diff`)"""
