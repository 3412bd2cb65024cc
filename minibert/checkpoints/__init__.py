"""Models on disk and on the Hub: where they lie, how their files are read, and conversion.

hub.py           where a model lies: embedded, folder, file, Hugging Face Hub
safetensors.py   safetensors files, memory-mapped and checked
torch_pickle.py  reads pytorch_model.bin without torch and without executing it
vocabularies.py  sets up a tokenizer from whatever files it lies in
sentencepiece.py SentencePiece models, without their library
layouts.py       how matrices of 4 to 8 bits lie in a file
conversion.py    minibert convert
"""
