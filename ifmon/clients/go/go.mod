module github.com/ifmon/ifmon/ifmon/clients/go

go 1.19
