module ifmon

go 1.19
