// A bare gRPC echo server in C++: what grpc++ alone costs for the same messages. Any method answers what it was sent.
//
//     echo PORT
//
// It listens on 127.0.0.1, prints "ready", and serves until it is killed. Threads and the rest are grpc++'s defaults.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <string>

class Echo : public grpc::ServerGenericBidiReactor {
  public:
    Echo() { StartRead(&message_); }
    void OnReadDone(bool ok) override {
        if (ok) StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
        else Finish(grpc::Status::OK);
    }
    void OnDone() override { delete this; }

  private:
    grpc::ByteBuffer message_;
};

class Service : public grpc::CallbackGenericService {
    grpc::ServerGenericBidiReactor *CreateReactor(grpc::GenericCallbackServerContext *) override { return new Echo; }
};

int main(int argc, char **argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: echo PORT\n");
        return 2;
    }
    Service service;
    grpc::ServerBuilder builder;
    int bound = 0;
    builder.AddListeningPort(std::string("127.0.0.1:") + argv[1], grpc::InsecureServerCredentials(), &bound);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterCallbackGenericService(&service);
    auto server = builder.BuildAndStart();
    if (!server || !bound) return 1;
    std::puts("ready");
    std::fflush(stdout);
    server->Wait();
}
