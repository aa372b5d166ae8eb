package rpc

import (
	"bytes"
	"context"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"deputy.example/deputy/client/delegation"
)

// received is a message that is being received. It keeps the error of a message that does not
// decode. For such a message grpc-go would answer INTERNAL, which is a fault of the server.
type received struct {
	into any
	err  error
}

// codec is the codec of protobuf, which also fills a received.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal decodes a message into v.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, is := v.(*received)
	if !is {
		return c.CodecV2.Unmarshal(data, v)
	}
	if err := c.CodecV2.Unmarshal(data, in.into); err != nil {
		in.err = delegation.Refuse(delegation.ParameterInvalid, "", "must be a message of this method's request type; encode it as protobuf with UTF-8 texts").WithCause(err)
	}
	return nil
}

// receive reads the next message of a call. grpc-go has answered the call if err is not nil.
func receive(recv func(any) error, message any) (refusal, err error) {
	in := &received{into: message}
	if err := recv(in); err != nil {
		return nil, err
	}
	return in.err, nil
}

// registrar registers services whose unary methods use receive. The refusal of a call or of its
// message reaches the interceptor, which answers and logs it like every other refusal.
type registrar struct{ *grpc.Server }

// RegisterService registers a service.
func (r registrar) RegisterService(d *grpc.ServiceDesc, service any) {
	own := *d
	own.Methods = slices.Clone(d.Methods)
	for i := range own.Methods {
		own.Methods[i].Handler = receiving(own.Methods[i].Handler)
	}
	r.Server.RegisterService(&own, service)
}

func receiving(handle grpc.MethodHandler) grpc.MethodHandler {
	return func(service any, ctx context.Context, recv func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		call := openingOf(ctx)
		return handle(service, ctx, func(message any) (err error) {
			if call.refusal != nil {
				return nil // does not wait for the message
			}
			if call.refusal, err = receive(recv, message); err != nil && ctx.Err() == nil {
				call.answered()
			}
			return err
		}, intercept)
	}
}

// unpacker is a compressor that turns a message that does not unpack into one that does not decode,
// so that codec reports it.
type unpacker struct{ encoding.Compressor }

func init() { // grpc-go permits registration only here
	encoding.RegisterCompressor(unpacker{encoding.GetCompressor(gzip.Name)})
}

// undecodable decodes as no message: its field has the number 0.
var undecodable = []byte{0x07}

// Decompress decompresses the whole message, up to the bound, before any of it is decoded.
func (u unpacker) Decompress(packed io.Reader) (io.Reader, error) {
	rest, err := u.Compressor.Decompress(packed)
	if err != nil {
		return bytes.NewReader(undecodable), nil
	}
	message, err := io.ReadAll(io.LimitReader(rest, maxMessageBytes+1))
	switch {
	case err != nil:
		return bytes.NewReader(undecodable), nil
	// A server refuses it; a client in this process may accept it.
	case len(message) > maxMessageBytes:
		return io.MultiReader(bytes.NewReader(message), rest), nil
	}
	return bytes.NewReader(message), nil
}
